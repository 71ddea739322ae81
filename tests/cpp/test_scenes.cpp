// Rendering of scenes whose depth, normals and labels are known in closed form.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "dpt/scenes/scene.h"

namespace {

using namespace dpt::scenes;

struct Rendered {
  int64_t height, width;
  std::vector<uint8_t> image, labels;
  std::vector<float> depth, normals;

  Rendered(const Scene& scene, int64_t height, int64_t width)
      : height(height),
        width(width),
        image(height * width * 3),
        labels(height * width),
        depth(height * width),
        normals(height * width * 3) {
    render(scene, height, width, 0, image.data(), depth.data(), normals.data(), labels.data());
  }

  // The ray through a pixel, 1 ahead.
  Vec ray(const Scene& scene, int64_t y, int64_t x) const {
    const float scale = 1 / (scene.focal * static_cast<float>(width));
    return {(static_cast<float>(x) + 0.5F - static_cast<float>(width) / 2) * scale,
            (static_cast<float>(y) + 0.5F - static_cast<float>(height) / 2) * scale, 1};
  }
  Vec normal(int64_t i) const { return {normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]}; }
};

Scene with(const Object& object) {
  Scene scene;
  scene.objects = {object};
  scene.ambient = {1, 1, 1};
  return scene;
}

Object make(Shape shape, Vec centre, Vec size, const Mat& axes = {}) {
  Object object;
  object.shape = shape;
  object.centre = centre;
  object.size = size;
  object.axes = axes;
  return object;
}

TEST(Scenes, BallHasTheDepthOfASphere) {
  const Scene scene = with(make(Shape::kEllipsoid, {0.3F, -0.2F, 5}, {1.5F, 1.5F, 1.5F}));
  const Rendered out(scene, 41, 63);
  int64_t num_hits = 0;
  for (int64_t y = 0; y < out.height; ++y) {
    for (int64_t x = 0; x < out.width; ++x) {
      const int64_t i = y * out.width + x;
      const Vec d = out.ray(scene, y, x), c{0.3F, -0.2F, 5};
      const double a = dot(d, d), b = dot(d, c), rest = dot(c, c) - 1.5 * 1.5;
      const double discriminant = b * b - a * rest;
      if (std::abs(discriminant) < 1e-2) continue;  // the rim
      if (discriminant < 0) {
        EXPECT_TRUE(std::isinf(out.depth[i]));
        EXPECT_EQ(out.labels[i], kSky);
        continue;
      }
      ++num_hits;
      const double t = (b - std::sqrt(discriminant)) / a;
      EXPECT_NEAR(out.depth[i], t, 2e-4);
      const Vec want = (1 / 1.5F) * (static_cast<float>(t) * d - c);
      EXPECT_NEAR(length(out.normal(i) - want), 0, 2e-3);
      EXPECT_EQ(out.labels[i], kBox);  // the label is the object's
    }
  }
  EXPECT_GT(num_hits, 200);
}

TEST(Scenes, TurnedBoxShowsAPlane) {
  // Its face z = 4 - 0.5 in axes that are turned by 30 degrees about y, seen wherever it fills.
  const Mat axes = rotation({0, 0.5235988F, 0});
  const Scene scene = with(make(Shape::kBox, {0, 0, 4}, {3, 3, 0.5F}, axes));
  const Rendered out(scene, 24, 24);
  const Vec normal = -1.0F * axes.z, point = Vec{0, 0, 4} - 0.5F * axes.z;
  for (int64_t i = 0; i < 24 * 24; ++i) {
    const Vec d = out.ray(scene, i / 24, i % 24);
    EXPECT_NEAR(out.depth[i], dot(normal, point) / dot(normal, d), 1e-4);
    EXPECT_NEAR(length(out.normal(i) - normal), 0, 1e-5);
  }
}

TEST(Scenes, RoomIsSeenFromInside) {
  Scene scene = with(make(Shape::kRoom, {0, -1, 0}, {2, 1, 3}));
  scene.camera = {0, -1, -1};
  scene.focal = 0.3F;
  const Rendered out(scene, 40, 40);
  const auto at = [&](int64_t y, int64_t x) { return y * 40 + x; };
  EXPECT_NEAR(out.depth[at(20, 20)], 4, 1e-4);
  EXPECT_EQ(out.labels[at(20, 20)], kWall);
  EXPECT_EQ(out.labels[at(39, 20)], kFloor);
  EXPECT_EQ(out.labels[at(0, 20)], kCeiling);
  EXPECT_NEAR(out.normal(at(39, 20)).y, -1, 1e-6);
  // The floor is 1 below the camera.
  EXPECT_NEAR(out.depth[at(39, 20)] * out.ray(scene, 39, 20).y, 1, 1e-4);
}

TEST(Scenes, CylinderHasSideAndCaps) {
  Scene scene = with(make(Shape::kCylinder, {0, 0, 3}, {0.5F, 1, 0.5F}));
  const Rendered side(scene, 33, 33);
  EXPECT_NEAR(side.depth[16 * 33 + 16], 2.5, 1e-4);
  EXPECT_NEAR(side.normal(16 * 33 + 16).z, -1, 1e-4);
  scene.view = rotation({-1.5707963F, 0, 0});  // looks down
  scene.camera = {0, -3, 3};
  const Rendered cap(scene, 33, 33);
  EXPECT_NEAR(cap.depth[16 * 33 + 16], 2, 1e-4);
  EXPECT_NEAR(cap.normal(16 * 33 + 16).z, -1, 1e-4);
}

TEST(Scenes, NearerObjectHidesTheOther) {
  Scene scene = with(make(Shape::kBox, {0, 0, 6}, {4, 4, 0.5F}));
  scene.objects.push_back(make(Shape::kEllipsoid, {0, 0, 3}, {0.5F, 0.5F, 0.5F}));
  scene.objects.back().label = kBall;
  const Rendered out(scene, 31, 31);
  EXPECT_EQ(out.labels[15 * 31 + 15], kBall);
  EXPECT_EQ(out.labels[0], kBox);
  std::swap(scene.objects[0], scene.objects[1]);
  const Rendered swapped(scene, 31, 31);
  EXPECT_EQ(out.depth, swapped.depth);
  EXPECT_EQ(out.image, swapped.image);
}

TEST(Scenes, ShadowsAreDarker) {
  Scene scene = with(make(Shape::kBox, {0, 0, 6}, {4, 4, 0.5F}));
  scene.objects[0].material.color = scene.objects[0].material.second = {0.5F, 0.5F, 0.5F};
  scene.ambient = {0.1F, 0.1F, 0.1F};
  scene.lights.push_back({{0, 0, 0}, false, {3, 3, 3}});
  const Rendered lit(scene, 31, 31);
  scene.objects.push_back(make(Shape::kEllipsoid, {0, -1.2F, 3}, {0.3F, 0.3F, 0.3F}));
  scene.lights[0].position = {0, -2.4F, 0};
  const Rendered dark(scene, 31, 31);
  // Ambient light alone is left: of 0.05, with gamma and a tenth of grain.
  EXPECT_NEAR(dark.image[3 * (15 * 31 + 15)], 255 * std::pow(0.05, 1 / 2.2), 4);
  EXPECT_GT(lit.image[3 * (15 * 31 + 15)], 100);
}

TEST(Scenes, AreTheSameAtAnySize) {
  // A pixel's centre is that of the middle one of the 3 x 3 at three times the size. Rectangles
  // that bound an object too narrowly would cut it off at one of the sizes.
  int64_t num_compared = 0, num_other = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Scene scene = make_scene(seed);
    const Rendered small(scene, 24, 32), large(scene, 72, 96);
    for (int64_t i = 0; i < 24 * 32; ++i) {
      const int64_t j = (3 * (i / 32) + 1) * 96 + 3 * (i % 32) + 1;
      const float a = small.depth[i], b = large.depth[j];
      ++num_compared;
      num_other += !(a == b || std::abs(a - b) < 1e-3F * a) || small.labels[i] != large.labels[j];
    }
  }
  // Rounding decides at edges.
  EXPECT_LT(num_other, num_compared / 1000);
}

TEST(Scenes, HaveNothingCloseToTheCamera) {
  float nearest = 1000;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const Scene scene = make_scene(seed);
    const Rendered seen(scene, 24, 32);
    for (int64_t i = 0; i < 24 * 32; ++i) {
      const float x = (static_cast<float>(i % 32) + 0.5F - 16) / (32 * scene.focal);
      const float y = (static_cast<float>(i / 32) + 0.5F - 12) / (32 * scene.focal);
      nearest = std::min(nearest, seen.depth[i] * length({x, y, 1}));
    }
  }
  EXPECT_GE(nearest, kClearance * 0.999F);
  EXPECT_LT(nearest, 2 * kClearance);
}

}  // namespace
