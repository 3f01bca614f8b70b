"""Feature maps of linear attention behind one interface: vectors in, logarithms of positive features out.

Every map turns x (B, G, N, D) into log phi(x) (B, G, N, M), and attention weighs a key by phi(q) . phi(k). Which map is
meant stands in `FeatureMapConfig.name`; each has a file of that name here, which says what may be chosen of it, what
is learned, and how it begins on a teacher's queries and keys:

| name | log phi_i(x) | source |
|---|---|---|
| performer | w_i . x' - |x'|^2 / 2 - log(M) / 2, w_i Gaussian | Choromanski and others, arXiv 2009.14794, Lemma 1 |
| pff | r_i v_i . x' - |x'|^2 / 2 - log(M) / 2, v_i on the sphere, r_i quasi-random | arXiv 2403.19928, section 3.2 |
| wpff | the same with a learned weight in place of 1 / sqrt(M) | the same, section 3.2 |
| dcf, wdcf | t_i c_i . x' + log d_i, c_i rows of the DCT | the same, section 3.3: D exp(T C x) |
| dijiang-code | x . (column i of the DCT) t_i, then log-softmax | the authors' code |
| dijiang | see `yeoul.model.feature_maps.frequencies.FrequencyFeatureMap` | this package |
| hedgehog | log-softmax of (W x, -W x) | Zhang and others, arXiv 2402.04347, section 4 |
| elu | log(elu(x_i) + 1) | Katharopoulos and others, arXiv 2006.16236, equation 7 |
| cosformer | log relu(x_i) + log cos or sin of the position | Qin and others, arXiv 2202.08791, section 3.3 |
| codebook | r_i . x' + s_i; of keys w . x' - u_i at the nearest code, else -inf | keys as in arXiv 2309.16354 |
| fourier | no logarithm: cos and sin of t_i c_i . x' + p_i | Rahimi and Recht 2007 |

x' = x sqrt(scale) with scale 1 / sqrt(D) unless given, so that q' . k' is the score of softmax attention.
"""
