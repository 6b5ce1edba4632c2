"""What stands between the network and MONAI Label; MONAI Label puts the folder above on the search path for modules."""
