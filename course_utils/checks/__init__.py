"""The exercises of the notebooks, one module each: `nb09` holds those of notebook 09."""
