"""What people declare: specs, overlays, environments and project settings, as values.

Everything here is pure. Bytes, overlays, the index of importable modules and the time are handed in; nothing in this
package opens a file, asks the clock or the environment, or imports the code that a spec names.
"""
