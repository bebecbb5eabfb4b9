"""The networks of the systems: plain modules with fp32 parameters, built fused or eager over the same parameters.

Read layers first, of which the networks are made. initialisation sets their start values. The networks of each system:

    refiner     autoencoder (D), refiner (G), landmarks (E)
    began       autoencoder (D), began (G)
    dcgan, wgan dcgan
    simgan      resnet (R), patchgan (D), face_parts (D of parts), resnet_features (fixed)
    cyclegan    resnet (G), patchgan (D)
    ggb         guided_unet (G, D), guiding_block (E, RAPD, NVTD)
    reenact     reenactment (G, D), vgg (fixed)

norms has instance and group normalisation; global_batch has BatchNorm and dropout for training with several processes.
"""
