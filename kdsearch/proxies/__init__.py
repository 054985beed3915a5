"""Training-free proxies: what an untrained student promises, in a fraction of a second.

>>> from kdsearch import proxies
>>> proxies.create("diswot", part="relation")
DisWOT(part='relation', similarity='samples', gradient='loss', init='gaussian')
"""

from kdsearch.proxies.catalogue import PROXIES, Proxy, StudentProxy, create, names, register

__all__ = ["PROXIES", "Proxy", "StudentProxy", "create", "names", "register"]
