"""The Storage Service Class (PS3.4 B) in both roles: keeping what arrives, sending what is kept."""
