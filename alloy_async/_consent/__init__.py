"""The consent gate: its rules (pure), and the condition variable that carries them out."""
