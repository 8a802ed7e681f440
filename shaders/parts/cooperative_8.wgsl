// Cooperative matrices of 8 × 8: F16 operands, F32 sums.

const MATRIX: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
