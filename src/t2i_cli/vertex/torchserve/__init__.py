"""Deployments on Google's PyTorch containers, which Google withdraws on 14 January 2027.

What goes with this folder then, besides tests/test_vertex_package.py and the lines about it in
docs/remote.md: `package` in cli/commands/remote_build.py, the three branches in
vertex/containers.py, and the word `torchserve` in SERVINGS (request_fields.py), in the table and
TRANSFER_FORMATS of backends/vertex/payload.py, and in the help of `deploy --serving`.
"""
