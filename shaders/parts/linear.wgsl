// One index over a dispatch of up to three dimensions: more than 65535 workgroups need a second one.

const THREADS: u32 = 256u;

// Index of this workgroup.
fn linear_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
