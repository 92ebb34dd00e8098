"""Running, recording and guarding the notebooks: what stands behind the `course` command."""
