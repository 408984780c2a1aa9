"""D_IA: corpus, encoders, exact index."""
