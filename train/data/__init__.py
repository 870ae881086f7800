"""Training data: readers of published datasets, of plain folders and of procedural scenes, and their mixture."""
