"""Many replicas on Ray Serve: where documents live, who answers, and what happens when a replica goes.

`placement`, `catalog` and `line` are plain code without Ray; `front` is the ingress over anything that answers like a
replica; `engine` is a replica; `serve` and `read_many` alone import Ray, inside their functions.
"""
