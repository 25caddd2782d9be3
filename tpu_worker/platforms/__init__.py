"""What the worker computes with: each platform is a room of its own behind the seam in `platform.py`; `choose.py` is the door."""
