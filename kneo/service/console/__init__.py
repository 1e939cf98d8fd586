"""The web console: HTML pages over the operations of ``kneo.api``.

A page is a route function in a module of its area, a view of ``kneo.api`` and a template. ``page.Pages`` registers the function,
``app.AREAS`` lists the areas.
"""
