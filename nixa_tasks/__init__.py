"""nixa: make for NixOS machines."""
