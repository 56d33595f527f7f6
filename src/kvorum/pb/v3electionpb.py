from kvorum.pb import load

globals().update(load("v3electionpb"))
