"""What would end a job in the queue, found before it is queued: of the JSON, the nodes, the data and this machine's software.

`examine` runs every check that its request asks for; each refusal is a Finding with a stable code, the reason and the fix.
"""
