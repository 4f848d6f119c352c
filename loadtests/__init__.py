"""Load tests: how fast the gateway is, measured beside other servers."""
