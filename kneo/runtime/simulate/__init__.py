"""Every way a run of a spec can go, found with the interpreter itself and nothing else. Pure: no step is executed.

``layout`` lists what a program consists of, ``script`` what may come of each action, ``walk`` follows all of it,
``matrix`` folds that into branches, ``report`` says what is wrong with them.

What steps would say is not known. A text of theirs counts only where a condition looks at it, so each step says
something no condition knows, and each of the words that conditions compare with. Words that change nothing fall together
again: two states that can only go the same ways are one.
"""
