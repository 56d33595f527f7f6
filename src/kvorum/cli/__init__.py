"""The programs: ``kvorum``, the server."""
