"""Datasets in hub layout: on a hub, in its cache, or in a local folder."""
