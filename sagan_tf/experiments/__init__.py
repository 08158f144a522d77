"""Suites of flagfiles: run, recorded, tabulated, drawn."""
