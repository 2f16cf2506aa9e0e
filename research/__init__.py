"""The experiments of three papers. They use the package asag; asag never uses them."""
