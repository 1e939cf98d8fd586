"""Kneo inside a program: the platform as one object, and runs whose steps are functions of the program.

``kneo.platform``, ``kneo.tools`` and ``kneo.sdk`` stand on it.
"""
