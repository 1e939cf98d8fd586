"""The model layer: the turns of agents, their models, tools, guardrails and memory."""
