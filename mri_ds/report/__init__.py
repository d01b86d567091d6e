"""A run on one page that needs no network: gather.py, then tables, charts, cases, cost and card, then page.py. See README.md."""
