"""The ways in: gRPC services and HTTP endpoints.

They check what a request says, hand it to the server, and put the answer into words; they decide
nothing.
"""
