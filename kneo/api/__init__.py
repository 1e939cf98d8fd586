"""What can be asked of Kneo, whoever asks: each operation once, a function with typed parameters and a typed view.

HTTP serves operations, the command line calls them in process or over HTTP. None of these modules knows either.
"""
