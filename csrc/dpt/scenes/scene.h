// csrc/dpt/scenes/scene.h -- procedural scenes to train on: rooms, table tops and streets of simple
// shapes. Plain C++ without torch.
//
// Axes: x to the right, y down, z forward; metres. A scene is made from its seed alone.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dpt/export.h"

namespace dpt::scenes {

// --- vectors ---

struct Vec {
  float x = 0, y = 0, z = 0;
};

inline Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec operator*(float s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
inline Vec operator*(Vec a, Vec b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
inline float dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline float length(Vec a) { return std::sqrt(dot(a, a)); }
inline Vec normalized(Vec a) { return (1 / length(a)) * a; }
inline Vec mix(Vec a, Vec b, float t) { return (1 - t) * a + t * b; }

// Three columns.
struct Mat {
  Vec x{1, 0, 0}, y{0, 1, 0}, z{0, 0, 1};
};

inline Vec operator*(const Mat& m, Vec v) { return v.x * m.x + v.y * m.y + v.z * m.z; }
// m' v
inline Vec transposed(const Mat& m, Vec v) { return {dot(m.x, v), dot(m.y, v), dot(m.z, v)}; }
inline Mat operator*(const Mat& a, const Mat& b) { return {a * b.x, a * b.y, a * b.z}; }
// About x (positive looks up), y (positive looks right), z.
DPT_API Mat rotation(Vec angles);

// --- random numbers ---

// splitmix64 (Steele, Lea, Flood 2014), the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  float uniform(float low = 0, float high = 1);  // in [low, high)
  int64_t below(int64_t n);                      // in [0, n)
  bool chance(float probability) { return uniform() < probability; }

 private:
  uint64_t state_;
};

// --- what a scene is made of ---

enum class Shape { kBox, kEllipsoid, kCylinder, kRoom };  // a room is a box seen from inside
enum class Texture { kPlain, kNoise, kChecker, kStripes, kSpots, kWood, kBricks, kPatches };

// Classes, in the order of names in python/torchdpt/scenes.py.
enum Label : uint8_t {
  kFloor,
  kWall,
  kCeiling,
  kSky,
  kBox,
  kBall,
  kCylinder,
  kTable,
  kShelf,
  kTree,
};

struct Material {
  Texture texture = Texture::kPlain;
  Vec color, second;
  float scale = 1;    // of the texture, in 1 / m
  float shine = 0;    // of the highlight
  uint32_t seed = 0;  // of the texture's noise
};

// The unit shape, [-1, 1] in each axis, scaled, rotated and moved.
struct Object {
  Shape shape = Shape::kBox;
  Vec centre, size{1, 1, 1};  // half sides
  Mat axes;
  Label label = kBox;
  Material material;
  Material walls, ceiling;  // of a room; `material` is its floor
};

struct Light {
  Vec position;  // or, at infinity, the direction to it
  bool infinite = false;
  Vec color;
};

struct Scene {
  std::vector<Object> objects;
  std::vector<Light> lights;
  Vec ambient;
  Vec horizon, zenith;  // colours of the sky
  Vec camera;
  Mat view;         // columns: the camera's axes in the world
  float focal = 1;  // in widths of the image
  float exposure = 1, noise = 0;
};

// Metres around the camera without any object: cameras do not focus, and sensors do not measure, on
// what is nearer.
constexpr float kClearance = 0.25F;

DPT_API Scene make_scene(uint64_t seed);

// Rays go through the centres of pixels. All arrays are dense: image [H, W, 3]; depth [H, W] along
// the optical axis, infinite in the sky; normals [H, W, 3] in the camera's axes, towards it, zero
// in the sky; labels [H, W].
DPT_API void render(const Scene& scene, int64_t height, int64_t width, uint64_t seed,
                    uint8_t* image, float* depth, float* normals, uint8_t* labels);

}  // namespace dpt::scenes
