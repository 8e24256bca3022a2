"""Which node is to blame? Credit assignment by planted defects: see `__main__.py`."""
