from kvorum.pb import load

globals().update(load("raftpb"))
