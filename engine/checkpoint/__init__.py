"""Checkpoints of one lineage in one folder. Nothing here imports DeepSpeed or the sources.

How a snapshot gets to the disk: the trainer takes a copy of the run; background.py hands it to a thread of rank 0;
CheckpointFolder.save (folder.py) writes state and snapshot, then the manifest; rotation.py moves the names along.
How it comes back: load.py verifies every file and reads the newest whole generation.
"""
