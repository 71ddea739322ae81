// csrc/dpt/scenes/scene.cpp -- random numbers, and scenes made from them.
//
// A scene of a seed must be the same from every compiler: of the arguments of a call at most one
// draws random numbers, since their order is open. That in braces is from left to right.
#include "dpt/scenes/scene.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace dpt::scenes {

Mat rotation(Vec angles) {
  const float pitch = angles.x, yaw = angles.y, roll = angles.z;
  const float cp = std::cos(pitch), sp = std::sin(pitch), cy = std::cos(yaw), sy = std::sin(yaw);
  const float cr = std::cos(roll), sr = std::sin(roll);
  const Mat about_x{{1, 0, 0}, {0, cp, sp}, {0, -sp, cp}};
  const Mat about_y{{cy, 0, -sy}, {0, 1, 0}, {sy, 0, cy}};
  const Mat about_z{{cr, sr, 0}, {-sr, cr, 0}, {0, 0, 1}};
  return about_y * (about_x * about_z);
}

uint64_t Random::next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

float Random::uniform(float low, float high) {
  return low + (high - low) * (static_cast<float>(next() >> 40) * 0x1p-24F);
}

int64_t Random::below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

namespace {

constexpr float kPi = std::numbers::pi_v<float>;

float degrees(float angle) { return angle * kPi / 180; }

// --- colours and materials ---

// From hue, saturation and value.
Vec hue(Vec hsv) {
  const auto channel = [&](float shift) {
    const float k = std::fmod(hsv.x * 6 + shift, 6.0F);
    return hsv.z * (1 - hsv.y * std::fmax(0.0F, std::fmin(1.0F, std::fmin(k, 4 - k))));
  };
  return {channel(5), channel(3), channel(1)};
}

Vec any_color(Random& random) {
  // Most things are not colourful.
  const float saturation =
      random.chance(0.6F) ? random.uniform(0, 0.35F) : random.uniform(0.3F, 0.95F);
  return hue({random.uniform(), saturation, random.uniform(0.08F, 0.95F)});
}

Material any_material(Random& random, float size) {
  Material m;
  // Most things have no pattern.
  const float kind = random.uniform();
  m.texture = kind < 0.35F   ? Texture::kPlain
              : kind < 0.55F ? Texture::kNoise
                             : static_cast<Texture>(2 + random.below(6));
  m.color = any_color(random);
  m.second = random.chance(0.5F) ? any_color(random) : random.uniform(0.4F, 0.9F) * m.color;
  m.scale = random.uniform(1, 8) / size;
  m.shine = random.chance(0.3F) ? random.uniform(0.1F, 0.8F) : 0;
  m.seed = static_cast<uint32_t>(random.next());
  return m;
}

// --- things ---

Object thing(Shape shape, Label label, Vec centre, Vec size, const Mat& axes,
             const Material& material) {
  Object object;
  object.shape = shape;
  object.label = label;
  object.centre = centre;
  object.size = size;
  object.axes = axes;
  object.material = material;
  return object;
}

Mat turned(Random& random) { return rotation({0, random.uniform(-kPi, kPi), 0}); }
Mat tumbled(Random& random) {
  return rotation(
      {random.uniform(-kPi, kPi), random.uniform(-kPi, kPi), random.uniform(-kPi, kPi)});
}

// A box, ball or cylinder about `size` across, standing on `at` (y is down).
void put_on(Scene& scene, Random& random, Vec at, float size) {
  const auto kind = random.below(5);
  const Material material = any_material(random, size);
  const auto side = [&] { return size * random.uniform(0.25F, 1) / 2; };
  if (kind <= 2) {
    const Vec half{side(), side(), side()};
    scene.objects.push_back(
        thing(Shape::kBox, kBox, at - Vec{0, half.y, 0}, half, turned(random), material));
  } else if (kind == 3) {
    const float radius = side();
    const Vec half = random.chance(0.5F) ? Vec{radius, radius, radius}
                                         : Vec{radius, radius * random.uniform(0.4F, 1.5F), side()};
    scene.objects.push_back(
        thing(Shape::kEllipsoid, kBall, at - Vec{0, half.y, 0}, half, turned(random), material));
  } else {
    const float radius = side();
    const Vec half{radius, size * random.uniform(0.3F, 1) / 2, radius};
    scene.objects.push_back(
        thing(Shape::kCylinder, kCylinder, at - Vec{0, half.y, 0}, half, {}, material));
  }
}

// Many parts in a few materials, about `size` across, on the ground at `at`: a machine, a heap.
void put_assembly(Scene& scene, Random& random, Vec at, float size) {
  const Mat axes = turned(random);
  const Vec half{size / 2, size * random.uniform(0.25F, 0.6F), size * random.uniform(0.1F, 0.5F)};
  std::array<Material, 3> materials;
  for (Material& material : materials) material = any_material(random, size / 2);
  for (auto left = 4 + random.below(14); left > 0; --left) {
    const float part = size * random.uniform(0.05F, 0.3F);
    Vec sides{part * random.uniform(0.3F, 1), part * random.uniform(0.3F, 1),
              part * random.uniform(0.3F, 1)};
    const auto form = random.below(4);
    const bool rod = form == 0, wheel = form == 1 && random.chance(0.5F);
    if (rod) sides = {0.08F * part, 2 * part, 0.08F * part};
    if (wheel) sides = {part, 0.2F * part, part};
    const float high = wheel ? part : part * random.uniform(0.5F, 1);
    const Vec offset{random.uniform(-1, 1) * (half.x - part), 0,
                     random.uniform(-1, 1) * std::fmax(0.0F, half.z - part)};
    const float up = wheel || random.chance(0.25F) ? high : random.uniform(high, 2 * half.y);
    const Shape shape = rod || wheel || form == 1 ? Shape::kCylinder
                        : form == 2               ? Shape::kBox
                                                  : Shape::kEllipsoid;
    const Label label = shape == Shape::kCylinder ? kCylinder : shape == Shape::kBox ? kBox : kBall;
    const Mat own = wheel                 ? rotation({kPi / 2, 0, 0})
                    : random.chance(0.4F) ? Mat{}
                                          : tumbled(random);
    scene.objects.push_back(thing(shape, label, at + axes * offset - Vec{0, up, 0}, sides,
                                  axes * own, materials[random.below(3)]));
  }
}

// A plate on four legs, with things on it.
void put_table(Scene& scene, Random& random, Vec at) {
  const float height = random.uniform(0.35F, 0.95F), thick = random.uniform(0.01F, 0.04F);
  const Vec half{random.uniform(0.25F, 0.9F), thick, random.uniform(0.25F, 0.6F)};
  const Mat axes = turned(random);
  const Material material = any_material(random, 0.6F);
  const Vec top = at - Vec{0, height, 0};
  scene.objects.push_back(thing(Shape::kBox, kTable, top + Vec{0, thick, 0}, half, axes, material));
  const float leg = random.uniform(0.015F, 0.05F);
  for (const float x : {-1.0F, 1.0F}) {
    for (const float z : {-1.0F, 1.0F}) {
      const Vec foot = at + axes * Vec{x * (half.x - leg), 0, z * (half.z - leg)};
      const Vec size{leg, height / 2 - thick, leg};
      scene.objects.push_back(
          thing(Shape::kBox, kTable, foot - Vec{0, size.y, 0}, size, axes, material));
    }
  }
  for (auto left = random.below(5); left > 0; --left) {
    const Vec offset{random.uniform(-0.8F, 0.8F) * half.x, 0, random.uniform(-0.8F, 0.8F) * half.z};
    put_on(scene, random, top + axes * offset, random.uniform(0.06F, 0.35F));
  }
}

// Boards between two sides.
void put_shelf(Scene& scene, Random& random, Vec at, const Mat& axes) {
  const Vec half{random.uniform(0.3F, 0.8F), random.uniform(0.4F, 1.1F),
                 random.uniform(0.12F, 0.25F)};
  const Material material = any_material(random, 1);
  const float thick = 0.015F;
  const Vec centre = at - Vec{0, half.y, 0};
  for (const float side : {-1.0F, 1.0F}) {
    scene.objects.push_back(thing(Shape::kBox, kShelf, centre + axes * Vec{side * half.x, 0, 0},
                                  {thick, half.y, half.z}, axes, material));
  }
  const auto boards = 2 + random.below(4);
  for (int64_t i = 0; i <= boards; ++i) {
    const float y = half.y - 2 * half.y * static_cast<float>(i) / static_cast<float>(boards);
    const Vec board = centre + Vec{0, y, 0};
    scene.objects.push_back(
        thing(Shape::kBox, kShelf, board, {half.x, thick, half.z}, axes, material));
    if (i < boards && random.chance(0.7F)) {
      const Vec on = board + axes * Vec{random.uniform(-0.7F, 0.7F) * half.x, 0, 0};
      put_on(scene, random, on - Vec{0, thick, 0}, random.uniform(0.1F, 0.3F));
    }
  }
}

void put_tree(Scene& scene, Random& random, Vec at) {
  const float height = random.uniform(2, 7), radius = random.uniform(0.08F, 0.3F);
  scene.objects.push_back(thing(Shape::kCylinder, kTree, at - Vec{0, height / 2, 0},
                                {radius, height / 2, radius}, {}, any_material(random, 1)));
  Material leaves = any_material(random, 1);
  leaves.texture = Texture::kNoise;
  leaves.color =
      hue({random.uniform(0.15F, 0.4F), random.uniform(0.3F, 0.8F), random.uniform(0.2F, 0.6F)});
  for (auto left = 1 + random.below(4); left > 0; --left) {
    const Vec offset{random.uniform(-0.8F, 0.8F), random.uniform(-1, 0.5F),
                     random.uniform(-0.8F, 0.8F)};
    const Vec half{random.uniform(0.6F, 1.6F), random.uniform(0.5F, 1.4F),
                   random.uniform(0.6F, 1.6F)};
    scene.objects.push_back(
        thing(Shape::kEllipsoid, kTree, at - Vec{0, height, 0} + offset, half, {}, leaves));
  }
}

// --- scenes ---

Vec lamp_color(Random& random, float strength) {
  const float warm = random.uniform(-0.15F, 0.25F);
  return strength * Vec{1 + warm, 1, 1 - warm};
}

// A room with furniture; the floor is y = 0.
void make_room(Scene& scene, Random& random) {
  const Vec half{random.uniform(1.4F, 4), random.uniform(1.15F, 1.8F), random.uniform(1.6F, 5)};
  Object room = thing(Shape::kRoom, kFloor, {0, -half.y, 0}, half, {}, any_material(random, 1.5F));
  room.walls = any_material(random, 2);
  if (random.chance(0.5F)) room.walls.texture = Texture::kPlain;
  room.ceiling = any_material(random, 3);
  if (random.chance(0.7F)) room.ceiling.texture = Texture::kPlain;
  scene.objects.push_back(room);

  scene.camera = {random.uniform(-0.6F, 0.6F) * half.x, -random.uniform(0.5F, 1.8F),
                  -random.uniform(0.55F, 0.95F) * half.z};
  scene.view = rotation({degrees(random.uniform(-28, 8)), degrees(random.uniform(-30, 30)),
                         degrees(random.uniform(-4, 4))});
  const auto place = [&] {
    return Vec{random.uniform(-0.92F, 0.92F) * half.x, 0, random.uniform(-0.5F, 0.95F) * half.z};
  };
  for (auto left = random.below(3); left > 0; --left) put_table(scene, random, place());
  for (auto left = 2 + random.below(10); left > 0; --left) {
    const Vec at = place();
    put_on(scene, random, at, random.uniform(0.2F, 1.5F));
  }
  if (random.chance(0.55F)) {  // what the picture is of
    const Vec ahead = normalized({scene.view.z.x, 0, scene.view.z.z});
    const float distance = random.uniform(1, 3);
    Vec at = scene.camera + distance * ahead;
    at = {std::clamp(at.x, -0.9F * half.x, 0.9F * half.x), 0,
          std::clamp(at.z, -0.9F * half.z, 0.9F * half.z)};
    put_assembly(scene, random, at, distance * random.uniform(0.4F, 1));
  }
  if (random.chance(0.5F)) {  // things along the wall at the back
    for (auto left = 4 + random.below(16); left > 0; --left) {
      const Vec at{random.uniform(-0.95F, 0.95F) * half.x,
                   -std::fmax(0.0F, random.uniform(-1.5F, 1.5F)),
                   half.z - random.uniform(0.05F, 0.5F)};
      put_on(scene, random, at, random.uniform(0.15F, 0.9F));
    }
  }
  if (random.chance(0.5F)) {
    put_shelf(scene, random, {random.uniform(-0.7F, 0.7F) * half.x, 0, half.z - 0.26F}, {});
  }
  // Pictures, doors and windows, flat on the wall.
  for (auto left = random.below(5); left > 0; --left) {
    const Vec size{random.uniform(0.15F, 0.7F), random.uniform(0.15F, 0.9F), 0.02F};
    const bool back = random.chance(0.5F);
    const float side = random.chance(0.5F) ? -1 : 1;
    const Vec centre{back ? random.uniform(-0.8F, 0.8F) * half.x : side * (half.x - 0.02F),
                     -random.uniform(0.5F, 2 * half.y - 0.4F),
                     back ? half.z - 0.02F : random.uniform(-0.3F, 0.9F) * half.z};
    scene.objects.push_back(thing(Shape::kBox, kWall, centre, size,
                                  rotation({0, back ? 0 : kPi / 2, 0}),
                                  any_material(random, 0.4F)));
  }
  for (auto left = 1 + random.below(3); left > 0; --left) {
    const Vec at{random.uniform(-0.8F, 0.8F) * half.x, -2 * half.y + random.uniform(0.05F, 0.5F),
                 random.uniform(-0.8F, 0.8F) * half.z};
    scene.lights.push_back({at, false, lamp_color(random, random.uniform(0.5F, 3))});
  }
}

// Small things in a heap on a surface, or in a tray, seen from above.
void make_table_top(Scene& scene, Random& random) {
  const float extent = random.uniform(0.2F, 0.7F);
  const Vec half{extent * random.uniform(1.1F, 3.5F), 0.05F, extent * random.uniform(1.1F, 3.5F)};
  const Mat plate = turned(random), around = turned(random);
  scene.objects.push_back(
      thing(Shape::kBox, kTable, {0, 0.05F, 0}, half, plate, any_material(random, extent)));
  Object room =
      thing(Shape::kRoom, kFloor, {0, -0.6F, 0}, {4, 1.4F, 4}, around, any_material(random, 1.5F));
  room.walls = any_material(random, 2);
  room.ceiling = any_material(random, 3);
  scene.objects.push_back(room);
  if (random.chance(0.5F)) {  // the tray
    const float rim = extent * random.uniform(0.1F, 0.8F) / 2, wide = random.uniform(0.6F, 1.1F),
                thick = extent * random.uniform(0.01F, 0.1F);
    const Material material = any_material(random, 2 * extent);
    for (const float side : {-1.0F, 1.0F}) {
      scene.objects.push_back(thing(Shape::kBox, kBox, {side * extent, -rim, 0},
                                    {thick, rim, wide * extent}, {}, material));
      scene.objects.push_back(thing(Shape::kBox, kBox, {0, -rim, side * wide * extent},
                                    {extent, rim, thick}, {}, material));
    }
    if (random.chance(0.7F)) {
      scene.objects.push_back(
          thing(Shape::kBox, kBox, {}, {extent, 0.01F * extent, wide * extent}, {}, material));
    }
  }
  for (auto left = 4 + random.below(18); left > 0; --left) {
    const Vec at{random.uniform(-0.9F, 0.9F) * extent, 0, random.uniform(-0.9F, 0.9F) * extent};
    const float size = extent * random.uniform(0.15F, 0.8F);
    if (random.chance(0.1F)) {
      put_assembly(scene, random, at, size);
      continue;
    }
    put_on(scene, random, at, size);
    if (random.chance(0.4F)) {  // books, bags, sheets
      Object& last = scene.objects.back();
      last.size = {0.5F * size, size * random.uniform(0.02F, 0.15F),
                   size * random.uniform(0.2F, 0.5F)};
      last.axes = rotation({random.uniform(-0.4F, 0.4F), random.uniform(-kPi, kPi), 0});
      last.centre.y = -random.uniform(0, 0.3F) * extent;
      continue;
    }
    if (random.chance(0.5F)) {  // fallen over, on other things
      Object& last = scene.objects.back();
      last.axes = tumbled(random);
      last.centre.y -= random.uniform(0, 0.5F) * extent;
    }
  }
  const float distance = extent * random.uniform(1.3F, 3.2F), pitch = random.uniform(15, 90);
  scene.view = rotation(
      {degrees(-pitch), degrees(random.uniform(-180, 180)), degrees(random.uniform(-8, 8))});
  const Vec target{random.uniform(-0.2F, 0.2F) * extent, -0.1F * extent,
                   random.uniform(-0.2F, 0.2F) * extent};
  scene.camera = target - distance * scene.view.z;
  for (auto left = 1 + random.below(2); left > 0; --left) {
    const Vec at{random.uniform(-2, 2), -random.uniform(0.8F, 1.8F), random.uniform(-2, 2)};
    scene.lights.push_back({at, false, lamp_color(random, random.uniform(0.8F, 3))});
  }
}

// Houses and trees under the sky.
void make_street(Scene& scene, Random& random) {
  scene.objects.push_back(
      thing(Shape::kBox, kFloor, {0, 1, 0}, {400, 1, 400}, {}, any_material(random, 3)));
  scene.camera = {0, -random.uniform(1, 3), 0};
  scene.view = rotation({degrees(random.uniform(-12, 8)), 0, degrees(random.uniform(-3, 3))});
  for (auto left = 2 + random.below(9); left > 0; --left) {
    const Vec half{random.uniform(1.5F, 8), random.uniform(1.2F, 8), random.uniform(1.5F, 8)};
    const float side = random.chance(0.5F) ? -1 : 1;
    const Vec at{side * (half.x + random.uniform(2, 14)), -half.y, random.uniform(6, 70)};
    const Mat axes = rotation({0, degrees(random.uniform(-15, 15)), 0});
    scene.objects.push_back(thing(Shape::kBox, kWall, at, half, axes, any_material(random, 4)));
  }
  for (auto left = random.below(8); left > 0; --left) {
    put_tree(scene, random, {random.uniform(-14, 14), 0, random.uniform(5, 45)});
  }
  for (auto left = 2 + random.below(8); left > 0; --left) {
    const Vec at{random.uniform(-6, 6), 0, random.uniform(3, 30)};
    put_on(scene, random, at, random.uniform(0.4F, 2.5F));
  }
  if (random.chance(0.4F)) {
    const Vec at{random.uniform(-2, 2), 0, random.uniform(3, 8)};
    put_assembly(scene, random, at, random.uniform(1, 4));
  }
  scene.horizon =
      hue({random.uniform(0.5F, 0.65F), random.uniform(0, 0.3F), random.uniform(0.6F, 1)});
  scene.zenith =
      hue({random.uniform(0.55F, 0.65F), random.uniform(0.1F, 0.7F), random.uniform(0.4F, 0.9F)});
  const Vec sun{random.uniform(-1, 1), -random.uniform(0.2F, 1.5F), random.uniform(-1, 1)};
  scene.lights.push_back({normalized(sun), true, lamp_color(random, random.uniform(0.3F, 1.2F))});
}

// From the camera to the nearest object, at least: to the boxes that they fit in.
float clearance(const Scene& scene) {
  float least = std::numeric_limits<float>::infinity();
  for (const Object& object : scene.objects) {
    const Vec at = transposed(object.axes, scene.camera - object.centre);
    const Vec outside{std::fabs(at.x) - object.size.x, std::fabs(at.y) - object.size.y,
                      std::fabs(at.z) - object.size.z};
    const float inner = std::max({outside.x, outside.y, outside.z});
    const Vec beyond{std::fmax(outside.x, 0.0F), std::fmax(outside.y, 0.0F),
                     std::fmax(outside.z, 0.0F)};
    least = std::fmin(least, object.shape == Shape::kRoom ? -inner : length(beyond));
  }
  return least;
}

Scene any_scene(Random& random) {
  Scene scene;
  const float kind = random.uniform();
  if (kind < 0.55F) {
    make_room(scene, random);
  } else if (kind < 0.85F) {
    make_table_top(scene, random);
  } else {
    make_street(scene, random);
  }
  scene.ambient = lamp_color(random, random.uniform(0.15F, 0.5F));
  scene.focal = 0.5F / std::tan(degrees(random.uniform(38, 85)) / 2);
  scene.exposure = random.uniform(0.7F, 1.5F);
  scene.noise = random.chance(0.7F) ? random.uniform(0, 0.04F) : 0;
  return scene;
}

}  // namespace

Scene make_scene(uint64_t seed) {
  Random random(seed);
  Scene scene = any_scene(random);
  while (clearance(scene) < kClearance) scene = any_scene(random);
  return scene;
}

}  // namespace dpt::scenes
