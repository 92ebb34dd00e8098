"""Tested reference implementations and the workshop behind the course "LLMs, Measured".

Nothing is imported here, so that `import course_utils` is quick and works without torch.
"""

__version__ = "0.1.0"
