"""What is left of an update once it has been merged, and once the merged weight has been quantized again."""
