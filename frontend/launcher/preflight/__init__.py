"""`engine-launch --check`: what a start would find here, without one."""
