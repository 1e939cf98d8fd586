"""What each kind of node does with its frame. Pure: frames in, frames out; time and chance are handed in.

The state of a run is a tree of frames, one per node that has begun and not ended, so that a step costs the depth of the
tree and not the length of the history. Every frame is a plain JSON object; the module of its node says what is in it.

A *place* names one passage through a node for ever: the ids on the way to it, with ``#n`` for the n-th round or visit
and ``@n`` for the n-th repetition of something that contains it (``refine#2/improve``).
"""
