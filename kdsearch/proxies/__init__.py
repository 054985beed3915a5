"""Training-free proxies: what an untrained student promises, in a fraction of a second.

>>> from kdsearch import proxies
>>> proxies.create("diswot", part="relation")
DisWOT(part='relation', init='gaussian')
"""

from kdsearch.proxies.catalogue import PROXIES, Proxy, create, names, register

__all__ = ["PROXIES", "Proxy", "create", "names", "register"]
