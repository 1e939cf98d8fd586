"""OpenID Connect: tokens of an issuer as credentials of the API, and signing in to the console."""
