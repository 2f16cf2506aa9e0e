"""What half precision does to δ."""
