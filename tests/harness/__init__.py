"""What the tests share: seeded weights, tiny model files, a real ComfyUI (in a process of its own, or in this
one).
"""
