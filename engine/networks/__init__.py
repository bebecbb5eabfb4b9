"""The networks of the systems: plain modules with fp32 parameters, built fused or eager over the same parameters."""
