"""recbole-robust: shilling attacks, robust recommenders and trustworthy measurement as a RecBole plugin."""

__version__ = "0.1.0"
