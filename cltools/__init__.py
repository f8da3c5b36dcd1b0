"""Coupled training of contrastive and supervised objectives, and how closely they stay aligned."""

__version__ = "0.1.0"
