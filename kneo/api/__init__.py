"""Operations of Kneo: each is one function with typed parameters and a typed view.

HTTP serves operations; the command line calls them in process or over HTTP. No module of this package imports either.
"""
