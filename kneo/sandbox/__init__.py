"""The sandbox: processes for code that a spec names, with the rights that the spec declares and no others."""
