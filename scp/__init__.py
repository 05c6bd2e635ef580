"""The network: associations, negotiation, the receive path and the service."""
