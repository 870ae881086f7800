"""Long hard knocks for a real ComfyUI with this pack: `python -m tools.soak`. Results stand in docs/reliability.md."""
