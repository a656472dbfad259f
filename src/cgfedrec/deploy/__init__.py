"""A federation over a network, on Flower: thin shells over the same server, clients, wire and training.

`cgfedrec.deploy.server` and `cgfedrec.deploy.client` are what Flower starts; nothing else here knows Flower but
`cgfedrec.deploy.exchange` and `cgfedrec.deploy.parcels`.
"""
