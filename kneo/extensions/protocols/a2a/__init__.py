"""Served agents over Agent2Agent, and remote agents as tools; what needs the extra ``a2a`` is imported at the first request or call."""

import logging

# The SDK logs agent cards and requests that it cannot parse, with their content.
logging.getLogger("a2a").setLevel(logging.CRITICAL)
