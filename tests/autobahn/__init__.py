"""Autobahn|Testsuite against the server's websocket configuration and the Python client's.

    make autobahn

The suite is Python 2.7 only, so it runs as a process of its own, from `.runwire/autobahn`.
"""
